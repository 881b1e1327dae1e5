"""The torch + bitsandbytes stack: the production lane."""

import logging


def _is_news(record: logging.LogRecord) -> bool:
    """False for bitsandbytes' warning that an optional CPU kernel of its eval mode is absent: this stack never uses that mode."""
    return "gemm_4bit_forward" not in record.getMessage()


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)
