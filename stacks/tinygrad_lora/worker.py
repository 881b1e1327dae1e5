"""The tinygrad stack's worker process."""

from __future__ import annotations

from contract.worker.serve import serve


def main() -> None:
    """Serves the stack over standard input and output."""
    serve("stacks.tinygrad_lora.ops:TinygradLora")


if __name__ == "__main__":
    main()
