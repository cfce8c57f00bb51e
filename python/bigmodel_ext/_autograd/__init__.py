"""Backward formulas, and nothing else. With W the (de-quantized) weight and g the gradient of the output:

int8_conv2d:                      dx = the transposed convolution of g with W         (rounding as below)
sparse_conv2d:                    the same, dvalues = (dense dW) at the stored positions: a dense backward pass
int8_linear, int8_sparse_linear, int8_semi_sparse_linear:
                                  dx = g W           (rounding counts as the identity: straight-through)
binary_coded_linear:              dx = g W (as above),  dalpha = (g^T x) summed with the signs,  dbias = sum g
pack_panel_csr:                   dweight = dvalues at the stored positions
sparse_linear, block_sparse_linear, semi_sparse_linear:
                                  dx = g W,  dvalues = (g^T x) at the stored positions,  dbias = sum g
                                  (products of the same kind: they have gradients in turn)
With an activation, y = act(z):   g is first multiplied by act'(z), z computed once more from x  (once only)
fused_dropout:                    dx = keep * scale * act'(x + bias) * g,  dbias = sum dx,  dresidual = g  (once only)
fused_dropout_norm:               the same with g = dh, the gradient that reaches h = residual + dropout(act(x + bias))
                                  directly and through its normalisation  (once only)
"""

from bigmodel_ext._autograd import binary_coded, blocks, conv, dropout, int8, sparse  # noqa: F401  (each registers its own)
