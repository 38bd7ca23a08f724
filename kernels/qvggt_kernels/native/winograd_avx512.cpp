// winograd.cpp with vectors of 512 bits.
#include "winograd.cpp"
