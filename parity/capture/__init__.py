"""What a stack answered, on disk: taken on one machine or in one environment, judged and compared on another."""
