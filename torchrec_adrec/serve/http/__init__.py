"""The recommender over HTTP. It needs the extra `serve`.

protocol (connections) -> access_log -> limits (bodies, token) -> app (routes)
-> queue (one thread) -> hot_swap (the version that is served)
"""
