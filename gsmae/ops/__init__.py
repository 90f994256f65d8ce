"""Operations with a plain torch definition and faster twins; each call takes the fastest that fits its inputs."""
