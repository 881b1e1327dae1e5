"""How an answer is judged: does it parse, does it do what was asked, and is it in good form."""
