"""The witness's worker process."""

from contract.worker.serve import serve

if __name__ == "__main__":
    serve("stacks.peft_witness.ops:PeftWitness")
