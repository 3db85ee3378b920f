"""What stands on the steps: whole chains from one file, and studies over variants of them."""
