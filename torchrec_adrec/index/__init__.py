"""From vectors to a sharded FAISS index, published through a recall gate.

This is the only room that imports faiss.
"""
