"""transformers and PEFT as a witness: a third opinion on what an artifact means, from the programs that users load it with."""
