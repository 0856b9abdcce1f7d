"""`adrec page`: a finished run in the browser. Only `app.py` knows Streamlit."""
