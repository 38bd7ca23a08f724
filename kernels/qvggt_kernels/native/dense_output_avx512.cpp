// dense_output.cpp with vectors of 512 bits.
#include "dense_output.cpp"
