//! A disk that forgets, tears and refuses.
