"""Text to pre-train on, generated: worked problems, plain English, simple Spanish."""
