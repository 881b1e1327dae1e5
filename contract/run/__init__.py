"""What a fine-tune run is: may it run, where, and will it fit."""
