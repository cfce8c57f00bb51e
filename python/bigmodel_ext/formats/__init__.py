"""Weight layouts: each module packs a dense weight and unpacks it again, in plain PyTorch."""
