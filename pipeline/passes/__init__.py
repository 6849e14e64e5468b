"""Olive passes of our own, named in `package.json`. Only here may heavy libraries be imported at the top."""
