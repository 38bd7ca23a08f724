// float_attention.cpp with vectors of 512 bits.
#include "float_attention.cpp"
