// One token's way through a model, as operators of PyTorch's; BARELOOP_OPS is their namespace.
#include <torch/library.h>

#include "argmax.h"
#include "block.h"
#include "linear.h"
#include "norms.h"

#define OPERATORS(name) TORCH_LIBRARY(name, library)

OPERATORS(BARELOOP_OPS) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", &linear);
  library.def("argmax(Tensor x) -> Tensor", &argmax);
  library.def("rms_norm(Tensor x, Tensor weight, float eps, str kind) -> Tensor", &rms_norm);
  library.def(
      "block(Tensor x, Tensor? cos, Tensor? sin, Tensor(a!)[] caches, int[] first, int[] last, int layer, "
      "Tensor?[] matrices, Tensor?[] norms, int[] heads, str norm, str qk_norm, str activation, float eps, float scale, "
      "float softcap, float clip, bool norm_before, bool norm_after, bool parallel, bool one_norm, bool gated) -> Tensor",
      &block);
}
