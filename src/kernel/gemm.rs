//! Matrix products on strided `f32` views: a checked, safe face of the `gemm` crate. Knows no tensor.
//!
//! Each output element is summed over the whole inner dimension by one thread, so the number of threads does not change the result.

/// A matrix view: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major `rows` × `cols` whose rows start `row_stride` elements apart.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride), "matrix view outside its data");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Row-major and dense.
    pub fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols)
    }

    /// The transpose, without a copy.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// How a product is written to its destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Overwrite.
    Set,
    /// Add to what is there.
    Add,
}

/// Which threads may work on one product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The caller's only; for products inside a parallel loop.
    One,
    /// All of rayon's.
    All,
}

/// `out = scale · a · b` or `out += scale · a · b`; `out` is row-major with rows `stride` apart.
pub fn gemm(
    (out, stride): (&mut [f32], usize),
    write: Write,
    scale: f32,
    (a, b): (Mat<'_>, Mat<'_>),
    threads: Threads,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    assert!(fits(out.len(), a.rows, b.cols, stride), "product outside its destination");
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    let signed = |stride: usize| stride as isize;
    #[expect(unsafe_code, reason = "the gemm crate takes raw pointers")]
    // SAFETY: all three views were checked to lie inside their slices, and `out` is borrowed mutably, so it does not overlap.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            signed(stride),
            write == Write::Add,
            a.data.as_ptr(),
            signed(a.col_stride),
            signed(a.row_stride),
            b.data.as_ptr(),
            signed(b.col_stride),
            signed(b.row_stride),
            1.0f32,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    rows == 0 || cols == 0 || ((rows - 1) * row_stride + cols <= len && (row_stride >= cols || rows == 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;

    fn reference(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f64> {
        let dot =
            |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum();
        (0..m * n).map(|at| dot(at / n, at % n)).collect()
    }

    #[test]
    fn matches_f64_in_every_orientation() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (17, 33, 9), (64, 64, 64), (65, 31, 70)] {
            let (a, b) = (noise(1, m * k, 1.0), noise(2, k * n, 1.0));
            let want = reference(&a, &b, m, k, n);
            let at: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
            for threads in [Threads::One, Threads::All] {
                let mut plain = vec![9.0; m * n];
                gemm((&mut plain, n), Write::Set, 1.0, (Mat::dense(&a, m, k), Mat::dense(&b, k, n)), threads);
                let mut twice = plain.clone();
                gemm(
                    (&mut twice, n),
                    Write::Add,
                    2.0,
                    (Mat::dense(&at, k, m).t(), Mat::dense(&b, k, n)),
                    threads,
                );
                for i in 0..m * n {
                    assert!((f64::from(plain[i]) - want[i]).abs() < 1e-5 * (1.0 + k as f64));
                    assert!((f64::from(twice[i]) - 3.0 * want[i]).abs() < 3e-5 * (1.0 + k as f64));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside its data")]
    fn a_view_past_the_end_is_refused() {
        let _ = Mat::new(&[0.0; 5], 2, 3, 3);
    }

    #[test]
    fn a_strided_destination_keeps_what_is_between_its_rows() {
        let (a, b) = (noise(1, 6, 1.0), noise(2, 4, 1.0));
        let want = reference(&a, &b, 3, 2, 2);
        let mut out = vec![9.0; 3 * 5];
        gemm((&mut out, 5), Write::Set, -2.0, (Mat::dense(&a, 3, 2), Mat::dense(&b, 2, 2)), Threads::One);
        for (i, x) in out.iter().enumerate() {
            let want = if i % 5 < 2 { -2.0 * want[i / 5 * 2 + i % 5] } else { 9.0 };
            assert!((f64::from(*x) - want).abs() < 1e-6, "{i}: {x} {want}");
        }
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros_or_adds_none() {
        let factors = || (Mat::dense(&[], 2, 0), Mat::dense(&[], 0, 3));
        let mut out = vec![9.0; 6];
        gemm((&mut out, 3), Write::Add, 1.0, factors(), Threads::One);
        assert_eq!(out, vec![9.0; 6]);
        gemm((&mut out, 3), Write::Set, 1.0, factors(), Threads::One);
        assert_eq!(out, vec![0.0; 6]);
        gemm(
            (&mut [], 3),
            Write::Set,
            1.0,
            (Mat::dense(&[], 0, 2), Mat::dense(&[1.0; 6], 2, 3)),
            Threads::All,
        );
    }

    #[test]
    fn a_view_of_some_columns_is_multiplied_as_if_it_were_dense() {
        let wide = noise(3, 4 * 7, 1.0);
        let (a, b) = (&wide[2..], noise(4, 9, 1.0));
        let dense: Vec<f32> = (0..4).flat_map(|i| a[i * 7..][..3].to_vec()).collect();
        let want = reference(&dense, &b, 4, 3, 3);
        let mut out = vec![0.0; 12];
        gemm((&mut out, 3), Write::Set, 1.0, (Mat::new(a, 4, 3, 7), Mat::dense(&b, 3, 3)), Threads::All);
        assert!(out.iter().zip(&want).all(|(got, want)| (f64::from(*got) - want).abs() < 1e-6));
    }

    #[test]
    #[should_panic(expected = "outside its destination")]
    fn a_product_past_the_end_is_refused() {
        let (a, b) = ([1.0; 4], [1.0; 4]);
        gemm((&mut [0.0; 3], 2), Write::Set, 1.0, (Mat::dense(&a, 2, 2), Mat::dense(&b, 2, 2)), Threads::One);
    }

    #[test]
    #[should_panic(expected = "inner dimensions differ")]
    fn factors_that_do_not_meet_are_refused() {
        let (a, b) = ([1.0; 4], [1.0; 6]);
        gemm((&mut [0.0; 4], 2), Write::Set, 1.0, (Mat::dense(&a, 2, 2), Mat::dense(&b, 3, 2)), Threads::One);
    }
}
