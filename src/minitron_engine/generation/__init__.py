"""Text generation: sampling, speculative decoding, chat, parallel slots and prompt caches."""
