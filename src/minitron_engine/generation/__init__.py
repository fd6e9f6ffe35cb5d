"""Text generation: sampling, speculative decoding, chat, parallel slots, prompt caches."""
