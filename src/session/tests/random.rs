use proptest::prelude::*;

use super::super::fuzz;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_operations_keeps_the_books(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz::operations(&bytes);
    }

    #[test]
    fn random_bytes_are_the_same_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..40) {
        fuzz::split(&bytes, step);
    }
}
