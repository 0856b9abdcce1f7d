"""The whole funnel judged as one product: what the served ads are worth."""
