"""One model architecture a file, named as config.json's model_type."""
