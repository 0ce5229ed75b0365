/** One row's share of a mean over tokens. */
export interface RowSum {
  /** Sum of the quantity over the row's tokens. */
  readonly sum: number;
  readonly tokens: number;
}

/** A mean over tokens, in the unit of the quantity. */
export interface RatioEstimate {
  readonly mean: number;
  /** Null with fewer than two rows. */
  readonly standardError: number | null;
}

/**
 * A mean over the tokens of all rows. Tokens of one row hang together, so rows are the independent units: the standard
 * error is that of a ratio of two sums over rows (Cochran 1977, Sampling Techniques, eq. 2.46),
 * √(R / (R-1) · Σ (sum_r - mean · tokens_r)²) / Σ tokens_r.
 */
export function estimateRatio(rows: readonly RowSum[]): RatioEstimate {
  const tokens = rows.reduce((total, row) => total + row.tokens, 0);
  const mean = rows.reduce((total, row) => total + row.sum, 0) / tokens;
  if (rows.length < 2) return { mean, standardError: null };
  const squares = rows.reduce((total, row) => total + (row.sum - mean * row.tokens) ** 2, 0);
  return { mean, standardError: Math.sqrt((rows.length / (rows.length - 1)) * squares) / tokens };
}
