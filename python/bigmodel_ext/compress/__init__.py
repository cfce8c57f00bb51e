"""From a trained model to a smaller and faster one: prune, distill, choose kernels, check, report."""
