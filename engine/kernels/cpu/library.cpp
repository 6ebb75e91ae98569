// The C++ kernels as PyTorch operators; BARELOOP_OPS is their namespace.
#include <torch/library.h>

#include "activations.h"
#include "argmax.h"
#include "blocks.h"
#include "flash.h"
#include "gemm.h"
#include "linear.h"
#include "mamba.h"
#include "norms.h"
#include "quantize.h"
#include "records.h"
#include "rwkv.h"

#define OPERATORS(name) TORCH_LIBRARY(name, library)

OPERATORS(BARELOOP_OPS) {
  library.def("linear(Tensor x, Tensor weight, Tensor? scales, Tensor? bias, Tensor? adapter=None, Tensor? adapter_sizes=None) -> Tensor", &linear);
  library.def("quantize(Tensor part, Tensor(a!) weight, Tensor(b!) scales, int first) -> ()", &quantize);
  library.def("dequantize(Tensor weight, Tensor scales, int first, int last, Tensor like) -> Tensor", &dequantize);
  library.def("decode_rows(Tensor weight, Tensor parts, Tensor ids, Tensor like) -> Tensor", &decode_rows);
  library.def("argmax(Tensor x) -> Tensor", &argmax);
  library.def("rms_norm(Tensor x, Tensor weight, float eps, str kind) -> Tensor", &rms_norm);
  library.def("add_norm(Tensor x, Tensor delta, Tensor? weight, Tensor? bias, float eps, str kind) -> (Tensor, Tensor)", &add_norm);
  library.def(
      "blocks(Tensor x, Tensor[] angles, Tensor(a!)[] segments, int[] counts, int[] lengths, int[] windows, int[] cache_indices, int[] cache_layers, "
      "Tensor?[] weights, int[] ropes, float[] scales, int[] heads, str norm, str qk_norm, str activation, float eps, "
      "float softcap, float clip_qkv, bool norm_before, bool norm_after, bool parallel, bool one_norm, bool gated, "
      "Tensor? adapters=None, Tensor? adapter_sizes=None) -> Tensor",
      &blocks);
  library.def("gated_activation(Tensor x, str activation) -> Tensor", &gated_activation);
  library.def(
      "rotate_and_write(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor(a!)[] segments, int[] rows, int[] pieces, int layer) -> Tensor",
      &rotate_and_write);
  library.def("set_threads(int count) -> int", &set_threads);
  library.def("gemm(Tensor x, Tensor weight, Tensor? scales, Tensor? bias, Tensor? adapter=None, Tensor? adapter_sizes=None) -> Tensor", &gemm);
  library.def("flash_attention(Tensor q, Tensor[] segments, int[] rows, int[] pieces, int layer, int window, float scale, float softcap) -> Tensor", &flash_attention);
  library.def(
      "mamba(Tensor x, Tensor conv, Tensor ssm, Tensor in_weight, Tensor? in_scales, Tensor? in_bias, Tensor conv_weight, Tensor? conv_bias, "
      "Tensor x_weight, Tensor dt_weight, Tensor dt_bias, Tensor a_log, Tensor d, Tensor out_weight, Tensor? out_scales, Tensor? out_bias, "
      "Tensor? adapters=None, Tensor? adapter_sizes=None) "
      "-> (Tensor, Tensor, Tensor)",
      &mamba);
  library.def("rwkv(Tensor x, Tensor[] memory, Tensor[] weights, Tensor?[] scales, float eps, Tensor? adapters=None, Tensor? adapter_sizes=None) -> Tensor[]", &rwkv);
}
