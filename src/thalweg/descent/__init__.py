"""The descent: the loop, and the small things it calls at named places."""
