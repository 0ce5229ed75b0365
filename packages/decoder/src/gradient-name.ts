/** The input that takes a gradient accumulator for the input `name`, and the output that holds the sum. */
export const gradientName = (name: string) => `gradient.${name}`;
