"""What contenders run: each file is one program, started with `python -m`."""
