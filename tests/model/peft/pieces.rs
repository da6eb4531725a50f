//! Work on an adapter's bytes goes on in short pieces, and gives the same bits as before it was cut.

use super::*;

/// Bytes of a piece at the most.
const PIECE: usize = attune::adapters::pieces::PIECE_BYTES;

/// Returns the fixture's adapter with its matrices in `dtype`.
fn files_in(family: &str, dtype: DType) -> (Vec<u8>, Vec<u8>) {
    let (config, weights) = files(family);
    let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).unwrap();
    let tensors: std::collections::HashMap<String, Tensor> =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap())).collect();
    (config, safetensors::serialize(&tensors, None).unwrap())
}

/// Returns the bits of a matrix in f32.
fn bits(matrix: &Tensor) -> Vec<u32> {
    let values = matrix.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn an_adapter_is_laid_out_straight_from_its_file_with_the_bits_of_its_matrices() {
    for family in FAMILIES {
        for (stored, precision) in
            [DType::F32, DType::F16, DType::BF16].into_iter().flat_map(|one| [(one, DType::F32), (one, DType::BF16)])
        {
            let (config, weights) = files_in(family, stored);
            let mut at_once = |_| {};
            let pieces = &mut Pieces::new(&mut at_once);
            let host = HostAdapter::check(&config, weights.into(), &model(family), MAX_RANK, pieces).unwrap();
            let plain = host.to_adapter(&Device::Cpu, pieces).unwrap();
            let served = host.to_served(precision, pieces).unwrap();
            assert_same_bits(&served, &plain.for_serving(precision).unwrap());
            for (served, plain) in served.layers.iter().zip(&plain.layers) {
                for site in Site::ALL {
                    let (Some(served), Some(plain)) = (served.get(site), plain.get(site)) else { continue };
                    let output = plain.b.dim(0).unwrap();
                    // Groups of sixteen outputs, the last filled up with zeros.
                    let b = served.b.transpose(1, 2).unwrap().flatten(0, 1).unwrap();
                    assert!(b.dim(0).unwrap() - output < 16);
                    let padding = b.narrow(0, output, b.dim(0).unwrap() - output).unwrap();
                    assert!(bits(&padding).iter().all(|bits| *bits == 0));
                    let b = b.narrow(0, 0, output).unwrap();
                    assert_eq!((served.a.dtype(), served.b.dtype()), (precision, precision));
                    assert_eq!(served.a.dims(), plain.a.dims());
                    assert_eq!(bits(&served.a), bits(&plain.a.to_dtype(precision).unwrap()), "{family} {stored:?}");
                    assert_eq!(bits(&b), bits(&plain.b.to_dtype(precision).unwrap()), "{family} {stored:?}");
                    assert_eq!(served.scale.to_bits(), plain.scale.to_bits());
                }
            }
        }
    }
}

fn assert_same_bits(one: &Adapter, two: &Adapter) {
    assert_eq!((&one.id, one.rank(), one.bytes()), (&two.id, two.rank(), two.bytes()));
    for (one, two) in one.layers.iter().zip(&two.layers) {
        for site in Site::ALL {
            assert_eq!(one.get(site).is_some(), two.get(site).is_some());
            let (Some(one), Some(two)) = (one.get(site), two.get(site)) else { continue };
            assert_eq!((bits(&one.a), bits(&one.b)), (bits(&two.a), bits(&two.b)));
            assert_eq!((one.a.stride(), one.b.stride()), (two.a.stride(), two.b.stride()));
        }
    }
}

/// Returns a model of the llama fixture's shape with wide layers, and an adapter of `rank` for it.
fn wide(rank: usize) -> (ModelConfig, peft::PeftFiles) {
    let mut model = model("llama");
    model.intermediate_size = 3000;
    let mut layers = vec![LoraLayer::default(); model.num_hidden_layers];
    for layer in &mut layers {
        for site in Site::USUAL {
            let (output, input) = site.shape(&model);
            let matrix = |shape| Tensor::rand(-1f32, 1f32, shape, &Device::Cpu).unwrap();
            layer.set(site, LoraPair { a: matrix((rank, input)), b: matrix((output, rank)), scale: 0.5 });
        }
    }
    (model, peft::write(&Adapter::new(String::new(), layers), "wide").unwrap())
}

#[test]
fn all_work_on_an_adapter_asks_between_pieces_of_bounded_size() {
    let (model, files) = wide(500);
    let total = files.weights.len();
    assert!(total > 10 * PIECE, "more than a few pieces");
    let asked = |what: &str, times: usize, work: &mut dyn FnMut(&mut Pieces<'_>)| {
        let mut pieces = Vec::new();
        let mut between = |bytes| pieces.push(bytes);
        work(&mut Pieces::new(&mut between));
        assert_eq!(pieces.first(), Some(&0), "{what}: asked before the first piece");
        assert!(pieces.iter().all(|bytes| *bytes <= PIECE), "{what}: {pieces:?}");
        // All that was done but the last piece has been told.
        let told: usize = pieces.iter().sum();
        let all = times * total;
        assert!((all * 9 / 10 - PIECE..=all * 11 / 10).contains(&told), "{what}: {told} of {all} bytes");
    };
    let id = files.id();
    let weights = bytes::Bytes::from(files.weights.clone());
    let mut host = None;
    asked("read, hash and check", 2, &mut |pieces| {
        let read = HostAdapter::read_stored(&id, &files.config, &files.weights[..], total, false, &model, pieces);
        host = Some(read.unwrap());
    });
    asked("hash and check", 2, &mut |pieces| {
        HostAdapter::check(&files.config, weights.clone(), &model, MAX_RANK, pieces).unwrap();
    });
    let host = host.unwrap();
    asked("copy", 1, &mut |pieces| drop(host.to_adapter(&Device::Cpu, pieces).unwrap()));
    asked("lay out", 1, &mut |pieces| drop(host.to_served(DType::F32, pieces).unwrap()));
    let mut at_once = |_| {};
    let plain = host.to_adapter(&Device::Cpu, &mut Pieces::new(&mut at_once)).unwrap();
    let served = host.to_served(DType::F32, &mut Pieces::new(&mut at_once)).unwrap();
    assert_same_bits(&served, &plain.for_serving(DType::F32).unwrap());
}

#[test]
fn a_stored_file_with_any_piece_changed_or_cut_off_is_refused_by_its_name() {
    let (model, files) = wide(100);
    let id = files.id();
    let total = files.weights.len();
    assert!(total > 2 * PIECE);
    let read = |weights: &[u8]| {
        let mut at_once = |_| {};
        let pieces = &mut Pieces::new(&mut at_once);
        HostAdapter::read_stored(&id, &files.config, weights, total, false, &model, pieces)
            .map(|host| host.id().to_owned())
    };
    let said = format!("the files of adapter {id} do not match its hash");
    let is_refused = |weights: &[u8]| matches!(read(weights), Err(Error::Internal(message)) if message == said);
    for place in [0, 100, PIECE - 1, PIECE, total / 2, total - 1] {
        let mut changed = files.weights.clone();
        changed[place] ^= 1;
        assert!(is_refused(&changed), "byte {place}");
    }
    for length in [0, 7, PIECE, total - 1] {
        assert!(is_refused(&files.weights[..length]), "cut off at {length}");
    }
    assert_eq!(read(&files.weights).unwrap(), id);
}

#[test]
fn a_value_that_is_not_finite_is_found_wherever_it_stands() {
    let (model, files) = wide(100);
    let header = 8 + u64::from_le_bytes(files.weights[..8].try_into().unwrap()) as usize;
    let values = (files.weights.len() - header) / 4;
    for (place, bad) in [(0, f32::NAN), (1023, f32::INFINITY), (1024, f32::NEG_INFINITY), (values - 1, f32::NAN)] {
        let mut changed = files.weights.clone();
        changed[header + 4 * place..][..4].copy_from_slice(&bad.to_le_bytes());
        let error = peft::read(&files.config, &changed, &model, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("has values that are not finite"), "value {place}: {error}");
    }
}
