// float_rotary.cpp with vectors of 512 bits.
#include "float_rotary.cpp"
