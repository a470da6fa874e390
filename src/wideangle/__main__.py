"""`python -m wideangle`: the program, where its script is not on the path."""

from wideangle.cli import app

if __name__ == "__main__":
    app(prog_name="wideangle")
