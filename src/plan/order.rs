//! The order of stages and the cycles that prevent one.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::{algo::kosaraju_scc, graph::DiGraph};

/// Cycles among `count` stages, each as a closed walk of stage numbers along the edges (`from` reads `to`), beginning at its
/// smallest member. One walk for each group of stages that wait for each other.
pub(super) fn cycles(count: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<Vec<usize>> {
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(count, edges.len());
    let nodes: Vec<_> = (0..count).map(|_| graph.add_node(())).collect();
    for (from, to) in edges {
        graph.add_edge(nodes[*from], nodes[*to], ());
    }
    let groups = kosaraju_scc(&graph).into_iter().filter(|group| group.len() > 1);
    let mut walks: Vec<Vec<usize>> = groups
        .map(|group| {
            let members: BTreeSet<usize> = group.iter().map(|node| node.index()).collect();
            shortest_walk(&members, edges)
        })
        .collect();
    walks.sort();
    walks
}

/// The shortest closed walk from the smallest member.
fn shortest_walk(members: &BTreeSet<usize>, edges: &BTreeSet<(usize, usize)>) -> Vec<usize> {
    let start = *members.first().expect("a group has members");
    let mut before: BTreeMap<usize, usize> = BTreeMap::new();
    let mut front = vec![start];
    while !before.contains_key(&start) {
        let mut next = Vec::new();
        for from in front {
            for (_, to) in edges.range((from, 0)..(from + 1, 0)).filter(|(_, to)| members.contains(to)) {
                if !before.contains_key(to) {
                    before.insert(*to, from);
                    next.push(*to);
                }
            }
        }
        front = next;
    }
    let mut walk = vec![start];
    let mut at = before[&start];
    while at != start {
        walk.push(at);
        at = before[&at];
    }
    walk.push(start);
    walk.reverse();
    walk
}

/// Producers before consumers; among stages that are free to run, the order of the manifest. Stages on a cycle, and those that
/// need them, are left out.
pub(super) fn topological(count: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<usize> {
    let mut waiting = vec![0_usize; count];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (from, to) in edges {
        waiting[*from] += 1;
        readers[*to].push(*from);
    }
    let mut free: BTreeSet<usize> = (0..count).filter(|stage| waiting[*stage] == 0).collect();
    let mut order = Vec::with_capacity(count);
    while let Some(stage) = free.pop_first() {
        order.push(stage);
        for reader in &readers[stage] {
            waiting[*reader] -= 1;
            if waiting[*reader] == 0 {
                free.insert(*reader);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_shortest_cycle_of_each_group_is_named() {
        let edges = BTreeSet::from([(0, 1), (1, 2), (2, 0), (2, 1), (3, 4), (4, 3), (5, 0)]);
        assert_eq!(cycles(6, &edges), [vec![0, 1, 2, 0], vec![3, 4, 3]]);
        assert_eq!(topological(6, &edges), Vec::<usize>::new());
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let edges: BTreeSet<_> = (1..50_000).map(|i| (i, i - 1)).collect();
        assert!(cycles(50_000, &edges).is_empty());
        assert_eq!(topological(50_000, &edges)[49_999], 49_999);
    }

    #[test]
    fn of_several_shortest_walks_one_is_named_and_long_ways_round_are_not() {
        let edges = BTreeSet::from([(1, 2), (2, 3), (3, 4), (4, 1), (2, 4), (4, 2)]);
        assert_eq!(cycles(5, &edges), [vec![1, 2, 4, 1]]);
        assert_eq!(topological(5, &edges), [0], "who is on no circle has an order");
        let ring: BTreeSet<_> = (0..5).map(|i| (i, (i + 1) % 5)).collect();
        assert_eq!(cycles(5, &ring), [vec![0, 1, 2, 3, 4, 0]]);
    }

    proptest! {
        #[test]
        fn the_order_takes_the_first_stage_that_is_free(edges in proptest::collection::btree_set((0..9_usize, 0..9_usize), 0..16)) {
            // A reader always after its producer in some order: edges from a larger number in a fixed shuffle.
            let place = |i: usize| (i * 5 + 2) % 9;
            let edges: BTreeSet<_> = edges.into_iter().filter(|(a, b)| place(*a) > place(*b)).collect();
            let mut left: BTreeSet<usize> = (0..9).collect();
            for stage in topological(9, &edges) {
                let free = |stage: usize| edges.iter().all(|(from, to)| *from != stage || !left.contains(to));
                prop_assert_eq!(left.iter().copied().find(|stage| free(*stage)), Some(stage));
                left.remove(&stage);
            }
            prop_assert!(left.is_empty());
        }

        #[test]
        fn every_stage_is_ordered_or_kept_back_by_a_cycle(edges in proptest::collection::btree_set((0..8_usize, 0..8_usize), 0..14)) {
            let edges: BTreeSet<_> = edges.into_iter().filter(|(a, b)| a != b).collect();
            let order = topological(8, &edges);
            let at = |stage| order.iter().position(|other| *other == stage);
            for (from, to) in &edges {
                if let Some(reader) = at(*from) {
                    prop_assert!(at(*to).is_some_and(|made| made < reader));
                }
            }
            let walks = cycles(8, &edges);
            prop_assert_eq!(order.len() == 8, walks.is_empty());
            for walk in walks {
                prop_assert_eq!(walk.first(), walk.last());
                for pair in walk.windows(2) {
                    prop_assert!(edges.contains(&(pair[0], pair[1])));
                }
            }
        }
    }
}
