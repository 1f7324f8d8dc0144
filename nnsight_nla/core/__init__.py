"""Pure tensor maths and plain records; nothing here sees a model."""
