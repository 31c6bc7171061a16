//! Visible and hidden names.

use datafusion::object_store::path::Path;

use super::is_visible;

#[test]
fn hidden_names_are_left_out_at_every_level_below_the_folder() {
    let folder = Path::from("data/_hidden/.folder");
    for (name, visible) in [
        ("x.parquet", true),
        ("k=1/x.parquet", true),
        ("_k=1/x.parquet", true),
        ("_k=1/l=_/x_.parquet", true),
        ("_x.parquet", false),
        (".x.parquet", false),
        ("_x=1.parquet", false),
        ("k=1/_x.parquet", false),
        ("k=1/.x.parquet", false),
        ("k=1/_temporary/0/x.parquet", false),
        ("_temporary/k=1/x.parquet", false),
        (".k=1/x.parquet", false),
    ] {
        let object = Path::parse(format!("{folder}/{name}")).unwrap();
        assert_eq!(is_visible(Some(&folder), &object), visible, "{name}");
    }
    assert!(is_visible(Some(&folder), &folder));
    assert!(!is_visible(None, &folder));
}
