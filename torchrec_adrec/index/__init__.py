"""Vectors to a sharded FAISS index behind a recall gate. The only user of faiss."""
