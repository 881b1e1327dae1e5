"""The subcommands of `finetune`, one a file; each loads what it needs when it runs."""
