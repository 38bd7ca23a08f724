// Which functions with which arguments a built library has: the Python module compares it.

#include "common.h"

// Raised with every change of an exported function's arguments, here and in __init__.py.
extern "C" QVGGT_EXPORT int qvggt_interface() {
    return 2;
}
