// A torch Work over operations of the core.
#pragma once
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "failure.h"

namespace wolong {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// A group as long as somebody needs it.
struct Membership {
    Group* group;
    unsigned rank, ranks;
    ~Membership() { wolong_leave(group); }
};

// One operation, what it points to, and what is left to do after it.
struct Step {
    alignas(16) char storage[OPERATION_BYTES];
    Tensors kept;
    std::vector<unsigned long> pieces, sizes;  // pieces: begin and bytes by destination
    std::vector<void*> outputs;
    std::function<void()> after;

    Operation* operation() { return reinterpret_cast<Operation*>(storage); }
};

class Work : public c10d::Work {
   public:
    Work(std::shared_ptr<Membership> member, c10d::OpType type, Name name, Tensors results, double timeout)
        : c10d::Work(int(member->rank), type),
          name_(name),
          timeout_(timeout),
          member_(std::move(member)),
          results_(std::move(results)) {}

    // Steps start as they are added and run in their order.
    Step& add_step() { return steps_.emplace_back(); }

    bool isCompleted() override {
        std::lock_guard<std::mutex> guard(finishing_);
        for (Step& step : steps_)
            if (wolong_test(step.operation()) == RUNNING) return false;
        conclude();
        return true;
    }

    // A timeout ends the waiting, not the operation, which keeps its group's own.
    bool wait(std::chrono::milliseconds timeout) override {
        std::lock_guard<std::mutex> guard(finishing_);
        if (timeout > kNoTimeout && !ends_within(timeout))
            C10_THROW_ERROR(DistBackendError,
                            c10::str("wolong: ", NAMES[name_], " on rank ", member_->rank, " of ",
                                     member_->ranks, " has not ended within the ", timeout.count(),
                                     " ms of wait(timeout)"));
        for (Step& step : steps_) wolong_wait(step.operation());
        conclude();
        if (auto failure = exception()) std::rethrow_exception(failure);
        return true;
    }

    void synchronize() override { wait(kNoTimeout); }

    // Whoever asks for a future waits for it elsewhere, where nobody would serve the operation: it ends here.
    c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
        auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
        try {
            wait(kNoTimeout);
            future->markCompleted(c10::IValue(results_));
        } catch (...) {
            future->setError(std::current_exception());
        }
        return future;
    }

    Tensors result() override { return results_; }
    int sourceRank() const override { return wolong_source(const_cast<Step&>(steps_.front()).operation()); }
    uint64_t getSequencenumber() const override { return sequence_; }

   private:
    bool ends_within(std::chrono::milliseconds timeout) {
        auto end = std::chrono::steady_clock::now() + timeout;
        for (Step& step : steps_)
            while (wolong_test(step.operation()) == RUNNING) {
                if (std::chrono::steady_clock::now() > end) return false;
                timespec moment{0, 50'000};
                nanosleep(&moment, nullptr);
            }
        return true;
    }

    void conclude() {
        if (c10d::Work::isCompleted()) return;
        for (Step& step : steps_) {
            int status = wolong_test(step.operation());
            sequence_ = wolong_sequence(step.operation());
            if (status != DONE) return finish(failure(status));
            if (step.after) step.after();
        }
        finish();
    }

    std::exception_ptr failure(int status) {
        auto why = describe_failure(member_->group, member_->rank, status, name_, sequence_, timeout_);
        try {
            C10_THROW_ERROR(DistBackendError,
                            c10::str("wolong: ", NAMES[name_], sequence_ ? c10::str(" #", sequence_) : "",
                                     " on rank ", member_->rank, " of ", member_->ranks, ": ", why));
        } catch (...) {
            return std::current_exception();
        }
    }

    Name name_;
    double timeout_;
    std::shared_ptr<Membership> member_;
    Tensors results_;
    std::deque<Step> steps_;
    std::mutex finishing_;
    uint64_t sequence_ = 0;
};

}  // namespace wolong
