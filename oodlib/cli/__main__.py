from oodlib.cli import app

app()
