"""The torch stack's worker process."""

from contract.worker.serve import serve

if __name__ == "__main__":
    serve("stacks.torch_qlora.ops:TorchQlora")
