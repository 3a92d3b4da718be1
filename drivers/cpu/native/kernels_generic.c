#include "native.h"
#include "vec_generic.h"
#define KERNELS kernels_generic
#define NAME "generic"
#include "kernels.inc"
