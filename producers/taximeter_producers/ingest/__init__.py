"""POST /v1/events: usage events from any language, as CloudEvents or plain JSON, over HTTP. Needs FastAPI and uvicorn."""
