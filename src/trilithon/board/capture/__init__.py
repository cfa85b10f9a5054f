"""One machine's answers to every read of `trilithon.board`, kept so that another machine can read them."""
