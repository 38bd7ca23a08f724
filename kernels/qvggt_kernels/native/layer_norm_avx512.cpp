// layer_norm.cpp with vectors of 512 bits.
#include "layer_norm.cpp"
