"""The watch: sees every step's record, names what goes wrong and proposes a cure; it never touches the model."""
