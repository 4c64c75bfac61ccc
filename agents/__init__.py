"""Roles: a prompt, a renderer and a parser each, and the policies that play them."""
