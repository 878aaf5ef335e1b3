"""A client of servers that speak the chat completions of OpenAI."""
