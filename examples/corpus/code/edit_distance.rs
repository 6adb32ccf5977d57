//! Levenshtein distance: the smallest number of insertions, deletions and
//! substitutions that turn one word into another. Useful for "did you mean ...?".

/// Return the edit distance between `a` and `b`, counted in Unicode scalar values.
///
/// Only one row of the table is kept, so memory grows with the length of the
/// shorter word, while the time is proportional to the product of both lengths.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };

    // row[j] is the distance between the part of `long` read so far and short[..j].
    let mut row: Vec<usize> = (0..=short.len()).collect();
    for (i, lc) in long.iter().enumerate() {
        let mut diagonal = row[0]; // value of row[j - 1] before this pass changed it
        row[0] = i + 1;
        for (j, sc) in short.iter().enumerate() {
            let substitute = diagonal + usize::from(lc != sc);
            let delete = row[j + 1] + 1;
            let insert = row[j] + 1;
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(delete).min(insert);
        }
    }
    row[short.len()]
}

/// Pick the candidate closest to `word`, unless even the best is more than
/// `limit` edits away. On a tie the first candidate wins.
pub fn suggest<'a>(word: &str, candidates: &[&'a str], limit: usize) -> Option<&'a str> {
    candidates
        .iter()
        .map(|&candidate| (edit_distance(word, candidate), candidate))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, _)| distance <= limit)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("Straße", "Strasse"), 2);
        assert_eq!(edit_distance("日本語", "日本"), 1);
    }

    #[test]
    fn suggestions() {
        let commands = ["commit", "checkout", "clone"];
        assert_eq!(suggest("comit", &commands, 2), Some("commit"));
        assert_eq!(suggest("zzzzzz", &commands, 2), None);
    }
}
