// torch's collectives in terms of the core's two: reductions and exchanges.
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/utils/pybind.h>

#include "work.h"

namespace wolong {
namespace {

using c10d::OpType;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using Milliseconds = std::chrono::milliseconds;
using c10d::kUnsetTimeout;

unsigned dtype_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case at::kFloat: return 0;
        case at::kDouble: return 1;
        case at::kHalf: return 2;
        case at::kBFloat16: return 3;
        case at::kChar: return 4;
        case at::kShort: return 5;
        case at::kInt: return 6;
        case at::kLong: return 7;
        case at::kByte: return 8;
        case at::kBool: return 9;
        default:
            TORCH_CHECK(false, "wolong cannot reduce ", tensor.scalar_type(), "; convert the tensor first");
    }
}

unsigned reduction_of(const c10d::ReduceOp& op, const Tensor& tensor) {
    switch (op.op_) {
        case c10d::ReduceOp::SUM: return 0;
        case c10d::ReduceOp::AVG:
            TORCH_CHECK(tensor.is_floating_point(), "wolong averages floats only, not ",
                        tensor.scalar_type());
            return 1;
        case c10d::ReduceOp::PRODUCT: return 2;
        case c10d::ReduceOp::MIN: return 3;
        case c10d::ReduceOp::MAX: return 4;
        default: TORCH_CHECK(false, "wolong reduces by sum, avg, product, min and max only");
    }
}

// Sums and averages of complex numbers are those of their parts.
Tensor real_view(const Tensor& tensor, const c10d::ReduceOp& op) {
    if (!tensor.is_complex()) return tensor;
    TORCH_CHECK(op.op_ == c10d::ReduceOp::SUM || op.op_ == c10d::ReduceOp::AVG,
                "wolong reduces complex numbers by sum and avg only");
    return at::view_as_real(tensor);
}

const Tensor& only(const Tensors& tensors) {
    TORCH_CHECK(tensors.size() == 1, "wolong takes one tensor a rank, not ", tensors.size());
    TORCH_CHECK(tensors[0].device().is_cpu(), "wolong moves tensors of the CPU, not of ",
                tensors[0].device());
    return tensors[0];
}

class Backend : public c10d::Backend {
   public:
    Backend(unsigned long engine, unsigned long group, unsigned long base, int rank, int ranks,
            double timeout)
        : c10d::Backend(rank, ranks),
          engine_(reinterpret_cast<Engine*>(engine)),
          base_(reinterpret_cast<char*>(base)),
          seconds_(timeout),
          member_(new Membership{reinterpret_cast<Group*>(group), unsigned(rank), unsigned(ranks)}) {
        init();
    }

    ~Backend() override { finish_all(); }

    const std::string getBackendName() const override { return "wolong"; }
    void setTimeout(Milliseconds timeout) override { seconds_ = double(timeout.count()) / 1e3; }
    void setSequenceNumberForGroup() override {}
    uint64_t getSequenceNumberForGroup() override { return wolong_calls(member_->group); }
    void abort() override { wolong_abort(member_->group); }
    void shutdown() override { finish_all(); }

    bool supportsTensorAlloc(c10::DeviceIndex) override { return true; }

    // In the arena, where a collective needs no copy; elsewhere when it is full.
    Tensor allocateTensor(long size, at::TensorOptions options) override {
        unsigned long offset = wolong_allocate(engine_, size * options.dtype().itemsize());
        if (offset == ~0ul) return at::empty({size}, options);
        auto give_back = [engine = engine_, offset, member = member_](void*) {
            wolong_release(engine, offset);
        };
        return at::from_blob(base_ + offset, {size}, give_back, options);
    }

    WorkPtr barrier(const c10d::BarrierOptions& options) override {
        auto work = begin(OpType::BARRIER, BARRIER, {}, options.timeout);
        wolong_barrier(work->add_step().operation(), member_->group, BARRIER, limit(options.timeout));
        return track(work);
    }

    void monitoredBarrier(const c10d::BarrierOptions& options, bool) override {
        barrier(options)->wait(kNoTimeout);
    }

    WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
        only(tensors);
        return reduce_all(OpType::ALLREDUCE, tensors, options.reduceOp, options.timeout);
    }

    WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
        return reduce_all(OpType::ALLREDUCE_COALESCED, tensors, options.reduceOp, options.timeout);
    }

    WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
        Tensor tensor = real_view(only(tensors), options.reduceOp);
        auto work = begin(OpType::REDUCE, REDUCE, tensors, options.timeout);
        reduce_in_place(*work, REDUCE, tensor, options.reduceOp, int(options.rootRank), options.timeout);
        return track(work);
    }

    WorkPtr _reduce_scatter_base(Tensor& output, Tensor& input,
                                 const c10d::ReduceScatterOptions& options) override {
        auto work = begin(OpType::_REDUCE_SCATTER_BASE, REDUCE_SCATTER, {output}, options.timeout);
        scatter_reduced(*work, output, input, options);
        return track(work);
    }

    WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                            const c10d::ReduceScatterOptions& options) override {
        auto work = begin(OpType::REDUCE_SCATTER_TENSOR_COALESCED, REDUCE_SCATTER, outputs, options.timeout);
        for (size_t i = 0; i < outputs.size(); i++) scatter_reduced(*work, outputs[i], inputs[i], options);
        return track(work);
    }

    WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                           const c10d::ReduceScatterOptions& options) override {
        auto work = begin(OpType::REDUCE_SCATTER, REDUCE_SCATTER, outputs, options.timeout);
        scatter_reduced(*work, only(outputs), side_by_side(inputs.at(0)), options);
        return track(work);
    }

    WorkPtr _allgather_base(Tensor& output, Tensor& input, const c10d::AllgatherOptions& options) override {
        auto work = begin(OpType::_ALLGATHER_BASE, ALL_GATHER, {output}, options.timeout);
        gather_to_all(*work, rows_of(output), input, options.timeout);
        return track(work);
    }

    WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                      const c10d::AllgatherOptions& options) override {
        auto work = begin(OpType::ALLGATHER, ALL_GATHER, outputs.at(0), options.timeout);
        gather_to_all(*work, outputs.at(0), only(inputs), options.timeout);
        return track(work);
    }

    WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                            const c10d::AllgatherOptions& options) override {
        auto work = begin(OpType::COALESCED, ALL_GATHER, outputs, options.timeout);
        for (size_t i = 0; i < outputs.size(); i++)
            gather_to_all(*work, rows_of(outputs[i]), inputs[i], options.timeout);
        return track(work);
    }

    WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
        const Tensor& tensor = only(tensors);
        bool is_root = rank_ == options.rootRank;
        auto work = begin(OpType::BROADCAST, BROADCAST, tensors, options.timeout);
        Tensors outputs(size_, nothing_like(tensor));
        if (!is_root) outputs[options.rootRank] = tensor;
        Exchange exchange{BROADCAST, int(options.rootRank), true, is_root ? tensor : nothing_like(tensor),
                          outputs};
        exchange.bytes.assign(size_, is_root ? tensor.nbytes() : 0);
        if (is_root) exchange.bytes[rank_] = 0;
        start(*work, exchange, options.timeout);
        return track(work);
    }

    WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs,
                   const c10d::GatherOptions& options) override {
        const Tensor& input = only(inputs);
        bool is_root = rank_ == options.rootRank;
        auto work = begin(OpType::GATHER, GATHER, is_root ? outputs.at(0) : Tensors{}, options.timeout);
        Exchange exchange{GATHER, int(options.rootRank), false, input,
                          is_root ? outputs.at(0) : Tensors(size_, nothing_like(input))};
        exchange.bytes.assign(size_, 0);
        exchange.bytes[options.rootRank] = input.nbytes();
        start(*work, exchange, options.timeout);
        return track(work);
    }

    WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                    const c10d::ScatterOptions& options) override {
        const Tensor& output = only(outputs);
        bool is_root = rank_ == options.rootRank;
        auto work = begin(OpType::SCATTER, SCATTER, outputs, options.timeout);
        Tensors places(size_, nothing_like(output));
        places[options.rootRank] = output;
        Exchange exchange{SCATTER, int(options.rootRank), false,
                          is_root ? side_by_side(inputs.at(0)) : nothing_like(output), places};
        for (int q = 0; q < size_; q++) exchange.bytes.push_back(is_root ? inputs[0][q].nbytes() : 0);
        start(*work, exchange, options.timeout);
        return track(work);
    }

    WorkPtr alltoall_base(Tensor& output, Tensor& input, std::vector<int64_t>& output_rows,
                          std::vector<int64_t>& input_rows, const c10d::AllToAllOptions& options) override {
        auto work = begin(OpType::ALLTOALL_BASE, ALL_TO_ALL, {output}, options.timeout);
        auto outputs = output_rows.empty() ? rows_of(output) : output.split_with_sizes(output_rows);
        Exchange exchange{ALL_TO_ALL, -1, false, input, outputs};
        for (auto& part : input_rows.empty() ? rows_of(input) : input.split_with_sizes(input_rows))
            exchange.bytes.push_back(part.nbytes());
        start(*work, exchange, options.timeout);
        return track(work);
    }

    WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override {
        auto work = begin(OpType::ALLTOALL, ALL_TO_ALL, outputs, options.timeout);
        Exchange exchange{ALL_TO_ALL, -1, false, side_by_side(inputs), outputs};
        for (auto& part : inputs) exchange.bytes.push_back(part.nbytes());
        start(*work, exchange, options.timeout);
        return track(work);
    }

    WorkPtr send(Tensors& tensors, int target, int tag) override {
        auto work = begin(OpType::SEND, SEND, tensors, kUnsetTimeout);
        Step& step = work->add_step();
        Tensor whole = only(tensors).contiguous();
        step.kept = {whole};
        wolong_send(step.operation(), member_->group, SEND, unsigned(target), tag, whole.data_ptr(),
                    whole.nbytes(), limit(kUnsetTimeout));
        return track(work);
    }

    WorkPtr recv(Tensors& tensors, int source, int tag) override {
        auto work = begin(OpType::RECV, RECV, tensors, kUnsetTimeout);
        Step& step = work->add_step();
        Tensor whole = whole_of(step, only(tensors), false);
        wolong_receive(step.operation(), member_->group, RECV, source, tag, whole.data_ptr(), whole.nbytes(),
                       limit(kUnsetTimeout));
        return track(work);
    }

    WorkPtr recvAnysource(Tensors& tensors, int tag) override { return recv(tensors, -1, tag); }

   private:
    struct Exchange {
        Name name;
        int root;
        bool is_shared;
        Tensor input;
        Tensors outputs;                   // by source
        std::vector<unsigned long> bytes;  // by destination
    };

    unsigned long limit(Milliseconds timeout) const {
        return timeout.count() > 0 ? timeout.count() * 1'000'000ul : (unsigned long)(seconds_ * 1e9);
    }

    c10::intrusive_ptr<Work> begin(OpType type, Name name, Tensors results, Milliseconds timeout) {
        return c10::make_intrusive<Work>(member_, type, name, std::move(results),
                                         double(limit(timeout)) / 1e9);
    }

    // Works that nobody holds any more must end, too.
    WorkPtr track(const c10::intrusive_ptr<Work>& work) {
        if (work->isCompleted()) return work;
        std::lock_guard<std::mutex> guard(tracking_);
        while (!under_way_.empty() && under_way_.front()->isCompleted()) under_way_.pop_front();
        under_way_.push_back(work);
        return work;
    }

    void finish_all() {
        std::lock_guard<std::mutex> guard(tracking_);
        for (auto& work : under_way_) {
            try {
                work->wait(kNoTimeout);
            } catch (const std::exception&) {  // its holder is told
            }
        }
        under_way_.clear();
    }

    static Tensor nothing_like(const Tensor& tensor) { return at::empty({0}, tensor.options()); }

    // The tensor, or a dense copy that is copied back after the step.
    static Tensor whole_of(Step& step, const Tensor& tensor, bool is_read) {
        if (tensor.is_contiguous()) {
            step.kept.push_back(tensor);
            return tensor;
        }
        Tensor whole = is_read ? tensor.contiguous() : at::empty_like(tensor, at::MemoryFormat::Contiguous);
        step.kept.push_back(whole);
        step.after = [before = std::move(step.after), tensor, whole] {
            if (before) before();
            tensor.copy_(whole);
        };
        return whole;
    }

    Tensors rows_of(const Tensor& tensor) const {
        TORCH_CHECK(tensor.is_contiguous(),
                    "wolong needs a contiguous tensor where all ranks' parts stand together");
        TORCH_CHECK(tensor.numel() % size_ == 0, "wolong cannot cut ", tensor.numel(), " elements in ", size_,
                    " parts");
        return tensor.view({size_, -1}).unbind(0);
    }

    // In the arena, so that it is read where it is.
    Tensor side_by_side(const Tensors& tensors) {
        long elements = 0;
        for (auto& tensor : tensors) elements += tensor.numel();
        Tensor whole = allocateTensor(elements, tensors.at(0).options());
        long at = 0;
        for (auto& tensor : tensors) {
            whole.narrow(0, at, tensor.numel()).copy_(tensor.reshape({-1}));
            at += tensor.numel();
        }
        return whole;
    }

    WorkPtr reduce_all(OpType type, const Tensors& tensors, const c10d::ReduceOp& op, Milliseconds timeout) {
        auto work = begin(type, ALL_REDUCE, tensors, timeout);
        for (auto& tensor : tensors)
            reduce_in_place(*work, ALL_REDUCE, real_view(tensor, op), op, -1, timeout);
        return track(work);
    }

    void reduce_in_place(Work& work, Name name, const Tensor& tensor, const c10d::ReduceOp& op, int root,
                         Milliseconds timeout) {
        unsigned dtype = dtype_of(tensor), reduction = reduction_of(op, tensor);
        Step& step = work.add_step();
        bool has_result = root < 0 || root == rank_;
        Tensor whole = has_result ? whole_of(step, tensor, true) : tensor.contiguous();
        step.kept.push_back(whole);
        wolong_reduce(step.operation(), member_->group, name, dtype, reduction, root, whole.numel(), 0,
                      whole.data_ptr(), has_result ? whole.data_ptr() : nullptr, limit(timeout));
    }

    void scatter_reduced(Work& work, const Tensor& output, const Tensor& input,
                         const c10d::ReduceScatterOptions& options) {
        TORCH_CHECK(input.numel() == output.numel() * size_, "wolong: reduce_scatter of ", input.numel(),
                    " elements to ", size_, " ranks needs outputs of that share, not of ", output.numel());
        Tensor target = real_view(output, options.reduceOp),
               source = real_view(input, options.reduceOp).contiguous();
        unsigned dtype = dtype_of(target), reduction = reduction_of(options.reduceOp, target);
        Step& step = work.add_step();
        Tensor whole = whole_of(step, target, false);
        step.kept.push_back(source);
        wolong_reduce(step.operation(), member_->group, REDUCE_SCATTER, dtype, reduction, -1, source.numel(),
                      whole.numel(), source.data_ptr(), whole.data_ptr(), limit(options.timeout));
    }

    void gather_to_all(Work& work, const Tensors& outputs, const Tensor& input, Milliseconds timeout) {
        Exchange exchange{ALL_GATHER, -1, true, input, outputs};
        exchange.bytes.assign(size_, input.nbytes());
        start(work, exchange, timeout);
    }

    void start(Work& work, const Exchange& exchange, Milliseconds timeout) {
        TORCH_CHECK(int(exchange.outputs.size()) == size_ && int(exchange.bytes.size()) == size_,
                    "wolong: ", NAMES[exchange.name], " needs a tensor for each of ", size_, " ranks");
        Step& step = work.add_step();
        Tensor input = exchange.input.contiguous();
        step.kept.push_back(input);
        unsigned long end = 0;
        for (unsigned long bytes : exchange.bytes) {
            step.pieces.insert(step.pieces.end(), {exchange.is_shared ? 0 : end, bytes});
            end = exchange.is_shared ? std::max(end, bytes) : end + bytes;
        }
        for (auto& output : exchange.outputs) {
            Tensor whole = whole_of(step, output, false);
            step.outputs.push_back(whole.data_ptr());
            step.sizes.push_back(whole.nbytes());
        }
        wolong_exchange(step.operation(), member_->group, exchange.name, exchange.root, exchange.is_shared,
                        input.data_ptr(), end, reinterpret_cast<const Piece*>(step.pieces.data()),
                        step.outputs.data(), step.sizes.data(), limit(timeout));
    }

    Engine* engine_;
    char* base_;
    double seconds_;
    std::shared_ptr<Membership> member_;
    std::mutex tracking_;
    std::deque<WorkPtr> under_way_;
};

}  // namespace
}  // namespace wolong

PYBIND11_MODULE(WOLONG_GLUE, module) {
    namespace py = pybind11;
    using wolong::Backend;
    py::class_<Backend, c10d::Backend, c10::intrusive_ptr<Backend>>(module, "Backend")
        .def(py::init<unsigned long, unsigned long, unsigned long, int, int, double>());
}
